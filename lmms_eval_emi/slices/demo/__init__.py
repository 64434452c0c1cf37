"""The demo's assets: a small LLaVA, encoders and the rows of a benchmark of drawn scenes. benchmarks/demo/ makes them."""
