"""Parts of the encoder's benchmark (`python -m benchmarks.encoder`).

`media.py`, `tower.py` and `stage_rows.py` each have `ROWS`, a mapping from a row's id to a function of the bench.
"""
