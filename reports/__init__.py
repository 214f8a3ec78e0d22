"""Reports of a search: pages, drawn in the browser by the modules of ``web/``, and pictures, drawn here with Pillow."""
