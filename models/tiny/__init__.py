"""The embedded family: text encoder, denoisers, autoencoder, verifiers and a next-scale model of Shapes World."""
