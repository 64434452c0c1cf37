"""Operators on texts: those of MM-Robustness [1], after nlpaug (characters) and EDA [2] (words). One file for each group.

Level n of 1 to 7 is the published rate of 0.05 n. Unlike there, a text keeps its spaces, its case and
its punctuation wherever an operator does not mean to change them; ``sr`` alone drops them as EDA does.

References:
    [1] J. Qiu et al.: Benchmarking Robustness of Multimodal Image-Text Models under Distribution Shift.
        JDMLR 2024. https://arxiv.org/abs/2212.08044
    [2] J. Wei, K. Zou: EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
        Classification Tasks. EMNLP 2019. https://arxiv.org/abs/1901.11196
"""

RATES = tuple(round(0.05 * level, 2) for level in range(1, 8))
