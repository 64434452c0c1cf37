"""The model ``llava_hf_bottleneck``: lmms-eval's ``llava_hf`` with a saved bottleneck of :mod:`lmms_eval_emi.robust_training`."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.chat.llava_hf import LlavaHf as ChatLlavaHf
from lmms_eval.models.simple.llava_hf import LlavaHf as SimpleLlavaHf

from lmms_eval_emi.robust_training import Bottleneck


class SimpleLlavaHfBottleneck(SimpleLlavaHf):  # type: ignore[misc]
    """``llava_hf`` for tasks with ``doc_to_visual`` and ``doc_to_text``.

    Args:
        pretrained: checkpoint of transformers.
        bottleneck: folder of the saved bottleneck; default: ``pretrained``.
        options: arguments of ``llava_hf``.

    Raises:
        UnavailableError: the folder contains no bottleneck.
    """

    def __init__(self, pretrained: str, bottleneck: str | None = None, **options: Any) -> None:
        super().__init__(pretrained=pretrained, **options)
        self.bottleneck = Bottleneck.load(bottleneck or pretrained, self.model)


class ChatLlavaHfBottleneck(SimpleLlavaHfBottleneck, ChatLlavaHf):  # type: ignore[misc]
    """``llava_hf`` for tasks with ``doc_to_messages``; arguments as :class:`SimpleLlavaHfBottleneck`."""

    is_simple = False
