# mypy: ignore-errors
"""The modern variant of gpt-runner for transformers (5.24 or newer), as exported with a model.

It is NanoChat with two additions: a smear, which adds learned shares of the previous tokens'
embeddings to each token, and attention windows. Load it with ``trust_remote_code=True``.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, NanoChatConfig, NanoChatForCausalLM, NanoChatModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast


class GPTRunnerConfig(NanoChatConfig):
    """NanoChat's settings, with ``layer_types``, ``sliding_window`` and ``smear``, in tokens."""

    model_type = "gpt_runner"


class GPTRunnerModel(NanoChatModel):
    """NanoChat with a smear and attention windows."""

    config_class = GPTRunnerConfig

    def __init__(self, config):
        super().__init__(config)
        shape = config.smear, config.hidden_size
        self.smear = nn.Parameter(torch.zeros(shape)) if config.smear else ()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        use_cache=None,
        previous_ids=None,
        **kwargs,
    ):
        """Return the last hidden states.

        ``previous_ids`` (batch, up to ``smear``) precede ``input_ids``.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        length, past = input_ids.shape[1], cache.get_seq_length() if cache is not None else 0
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        elif position_ids is None:
            position_ids = torch.arange(past, past + length, device=input_ids.device)[None]
        previous_ids = input_ids[:, :0] if previous_ids is None else previous_ids
        count = min(past, self.config.smear)
        if previous_ids.shape[1] < count:
            raise ValueError(f"with a cache, pass the {count} ids before input_ids as previous_ids")
        mask_arguments = {
            "config": self.config,
            "inputs_embeds": self.embed_tokens(input_ids),
            "attention_mask": attention_mask,
            "cache": cache,
            "position_ids": position_ids,
        }
        masks = {"full_attention": create_causal_mask(**mask_arguments)}
        if "sliding_attention" in self.config.layer_types:
            masks["sliding_attention"] = create_sliding_window_causal_mask(**mask_arguments)
        ids = torch.cat((previous_ids, input_ids), dim=1)
        embeddings = self.norm(self.embed_tokens(F.pad(ids, (self.config.smear, 0))))
        end = embeddings.shape[1]
        hidden_states = embeddings[:, end - length :]
        for i, share in enumerate(self.smear, start=1):
            exists = (position_ids >= i)[..., None]  # the first tokens of a text have none before
            before = embeddings[:, end - length - i : end - i] * exists
            hidden_states = torch.addcmul(hidden_states, before, share)
        rotary = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[kind],
                position_embeddings=rotary,
                position_ids=position_ids,
                cache=cache,
                sliding_window=self.config.sliding_window if kind != "full_attention" else None,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache)


class GPTRunnerForCausalLM(NanoChatForCausalLM):
    """The network with its head; ``generate`` works as for every transformers model."""

    config_class = GPTRunnerConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = GPTRunnerModel(config)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        """Add the tokens before the ones that are not in the cache yet."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        length = inputs["input_ids"].shape[1]
        if length < input_ids.shape[1]:
            first = max(0, input_ids.shape[1] - length - self.config.smear)
            inputs["previous_ids"] = input_ids[:, first:-length]
        return inputs
