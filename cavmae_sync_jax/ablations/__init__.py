"""Tables of ablations: `tables` and `paper` have their columns and rows, `plan` the trainings.

A row is one of a config's `VARIANTS` (`configs/pretrain.py`); to add an ablation, add one there.
"""
