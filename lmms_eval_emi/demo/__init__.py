"""The demo: a benchmark of drawn scenes, a small LLaVA that looks at them, and encoders for its figures.

``scenes`` draws and asks, ``build`` makes every asset from seeds; the assets are in ``assets/``.
"""
