"""Construction of the parts that AWM and HWM share."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from .._checks import check_counts, check_key, kind
from ._gaussian import GaussianHead, outputs_of, with_head
from .backbones import AbstractBackbone, Transformer


def sequence_parts(
    owner: str,
    state_size: int,
    action_size: int,
    backbone: AbstractBackbone | None,
    *,
    reads_state: bool,
    head: Callable[[eqx.nn.MLP], GaussianHead] | None,
    key: PRNGKeyArray,
) -> tuple[AbstractBackbone, eqx.nn.Linear, eqx.nn.Linear, eqx.nn.MLP | GaussianHead]:
    """Return the backbone, the embedding of s_0, the embedding of each step, and the head that decodes features.

    The embedding of a step reads the action, after the state if `reads_state`.
    """
    check_counts(owner, state_size=state_size, action_size=action_size)
    check_key(owner, key)
    if backbone is None:
        key, backbone_key = jax.random.split(key)
        backbone = Transformer(key=backbone_key)
    if not isinstance(backbone, AbstractBackbone):
        raise ValueError(
            f"{owner} needs an AbstractBackbone, got {kind(backbone)}; pass one such as LSTM(key=key), or none for a transformer."
        )
    first_key, token_key, head_key = jax.random.split(key, 3)
    width = backbone.width
    embed_first = eqx.nn.Linear(state_size, width, key=first_key)
    embed_token = eqx.nn.Linear(action_size + (state_size if reads_state else 0), width, key=token_key)
    decoder = eqx.nn.MLP(width, outputs_of(state_size, head), width, 1, jax.nn.swish, key=head_key)
    return backbone, embed_first, embed_token, with_head(owner, decoder, head)
