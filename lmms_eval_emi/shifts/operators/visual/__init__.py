"""Operators on images: those of ImageNet-C [1], as MM-Robustness [2] uses them. One file for each group.

The parameters of the five severities are the published ones. They were chosen for photographs of
about 224 x 224 pixels and are in pixels, as in [2]; on a larger photograph the same severity is milder.

References:
    [1] D. Hendrycks, T. Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations. ICLR 2019. https://arxiv.org/abs/1903.12261
    [2] J. Qiu et al.: Benchmarking Robustness of Multimodal Image-Text Models under Distribution Shift.
        JDMLR 2024. https://arxiv.org/abs/2212.08044
"""
