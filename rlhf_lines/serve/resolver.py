"""vLLM's question for an adapter that it does not know, answered with a mix."""

from __future__ import annotations

import logging

from fastapi import HTTPException
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from rlhf_lines.serve.mixes import Busy
from rlhf_lines.serve.names import is_mix
from rlhf_lines.serve.service import service


logger = logging.getLogger(__name__)


class MixResolver(LoRAResolver):
    """Makes the adapter of a mix from its name."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a mix; None for other names, which are for others to find.

        Raises:
            ValueError: there is no such mix; vLLM answers 400 with the sentence.
            HTTPException: there is no room at the moment (503), or the mix could not be made (500).
        """
        if not is_mix(lora_name):
            return None
        try:
            path = await service().mixes.path(lora_name)
        except Busy as busy:
            raise HTTPException(503, str(busy)) from None
        except OSError as error:  # whose text holds paths, which are no matter of a client
            logger.exception("%s could not be made", lora_name)
            raise HTTPException(500, f"{lora_name} could not be made: the log of the server says why") from error
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(path))  # vLLM numbers it
