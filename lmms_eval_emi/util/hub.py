"""One short check whether the Hugging Face hub can be reached, before libraries retry for minutes."""

from __future__ import annotations

import logging
import os
import sys
from functools import lru_cache

log = logging.getLogger("lmms_eval_emi")

SECONDS = 4.0


@lru_cache(maxsize=1)
def go_offline_unless_reachable() -> bool:
    """Ask the hub once; if it does not answer, let this process use only what is cached.

    huggingface_hub, transformers and datasets read ``HF_HUB_OFFLINE`` when they are imported, so those that are
    imported already are told as well.

    Returns:
        Whether the hub may be asked.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
        return True
    except Exception as error:  # httpx and requests, which different versions use, raise dozens
        log.warning(
            "The hub %s does not answer (%s); only what is cached is used. Set HF_HUB_OFFLINE=1 on machines without a connection.",
            constants.ENDPOINT,
            type(error).__name__,
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    config = getattr(sys.modules.get("datasets"), "config", None)
    if config is not None:
        config.HF_HUB_OFFLINE = True
    return False
