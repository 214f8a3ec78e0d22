"""One search over several workers: the search stays with the driver, workers are functions of rows.

with LocalWorkers(Recipe("shapes", {"steps": 20}), count=2) as workers:
    run_search(Plan(SMC(16), workers=workers), made.process, made.verifier, prompts)
"""
