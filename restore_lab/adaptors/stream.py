"""DCP: cross attention to an image encoder's features of the LQ (InstantIR, section 3.2, Eqs. 3, 4).

A Perceiver resampler maps the features to tokens; diffusers' IPAdapterPlusImageProjection has exactly InstantIR's
parameters. In every cross attention to the text (in an MM-DiT: in every joint attention, for the image's queries) the
stream adds w CrossAttn(f, Phi(c_lq, t)) with its own keys and values. Phi is adaptive layer norm, with scale and shift
from the time embedding: on the keys and values (`adaln_on=kv`, the release) or once on the tokens (`context`, Eq. 4).
The stream shares the attention's output layer. `adaptor/stream=none|dcp`.
Shapes: visual features (B, N, E) -> tokens (B, L, D); temb (B, T).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from restore_lab.config.kinds import Count
from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

    from restore_lab.backbones.base import Backbone

NORM_EPS = 1e-6


class AdaNorm(nn.Module):
    """LayerNorm(x) (1 + scale) + shift, both by a zero-initialised linear layer of the time embedding (Eq. 4)."""

    def __init__(self, *, width: int, temb: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.linear = nn.Linear(temb, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BLD: Tensor, temb_BD: Tensor) -> Tensor:
        shift_BD, scale_BD = self.linear(F.silu(temb_BD.to(x_BLD.dtype))).chunk(2, dim=-1)
        return self.norm(x_BLD) * (1 + scale_BD[:, None]) + shift_BD[:, None]  # InstantIR, Eq. 4


class Layer(nn.Module):
    """The stream's weights in one attention, initialised from the attention's keys and values if the widths agree."""

    def __init__(self, attention: Attention, *, tokens: int, temb: int, on_kv: bool) -> None:
        super().__init__()
        width = attention.inner_dim
        self.to_k_ip, self.to_v_ip = nn.Linear(tokens, width, bias=False), nn.Linear(tokens, width, bias=False)
        for own, text in ((self.to_k_ip, attention.to_k), (self.to_v_ip, attention.to_v)):
            if text is not None and text.weight.shape == own.weight.shape:
                own.weight.data.copy_(text.weight.data)
        self.ln_k_ip = AdaNorm(width=width, temb=temb) if on_kv else None
        self.ln_v_ip = AdaNorm(width=width, temb=temb) if on_kv else None

    def forward(self, tokens_BLD: Tensor, temb_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, L, C)."""
        k_BLC, v_BLC = self.to_k_ip(tokens_BLD), self.to_v_ip(tokens_BLD)
        if self.ln_k_ip is not None and self.ln_v_ip is not None:
            k_BLC, v_BLC = self.ln_k_ip(k_BLC, temb_BD), self.ln_v_ip(v_BLC, temb_BD)
        return k_BLC, v_BLC


@check_arguments
class VisualStream(nn.Module):
    """The resampler and the layers of all attentions, which it installs in the backbone.

    Args:
        backbone: the prior, whose attention processors are replaced.
        inputs: width of the image encoder's features.
        hidden, depth, heads, dim_head, queries: settings of the resampler.
        adaln_on: "kv" or "context".
        scale: w; 0 turns the stream off.

    Raises:
        ValueError: without an image encoder (`inputs` 0).
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        inputs: int,
        hidden: Count,
        depth: Count,
        heads: Count,
        dim_head: Count,
        queries: Count,
        adaln_on: Literal["kv", "context"] = "kv",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not inputs:
            raise ValueError("a visual stream reads what an image encoder sees; set prompt/visual=dino or clip")
        from diffusers.models.embeddings import IPAdapterPlusImageProjection

        self.scale = float(scale)
        tokens, temb = backbone.token_width, backbone.temb_width
        self.resampler = IPAdapterPlusImageProjection(
            embed_dims=inputs,
            output_dims=tokens,
            hidden_dims=hidden,
            depth=depth,
            dim_head=dim_head,
            heads=heads,
            num_queries=queries,
        )
        self.ln_context = AdaNorm(width=tokens, temb=temb) if adaln_on == "context" else None
        self.layers = nn.ModuleDict()
        for name, attention in text_attentions(backbone).items():
            layer = Layer(attention, tokens=tokens, temb=temb, on_kv=adaln_on == "kv")
            self.layers[name.replace(".", "_")] = layer.to(attention.to_q.weight.device)
            processor: Any = Processor(attention.processor, self, layer)  # diffusers annotates one of its classes
            attention.set_processor(processor)

    def forward(self, visual_BND: Tensor) -> Tensor:
        """The tokens c_lq, (B, L, D)."""
        return self.resampler(visual_BND.to(self.resampler.proj_in.weight.dtype))

    def lora_hosts(self) -> dict[str, tuple[nn.Module, str]]:
        """The modules that a previewer's LoRA modifies besides the prior, with their target layers (InstantIR)."""
        return {
            "resampler": (self.resampler, r".*(to_q|to_k|to_v|to_out\.0)|proj_in|proj_out"),
            "stream": (self.layers, r".*(to_k_ip|to_v_ip|ln_k_ip\.linear|ln_v_ip\.linear)"),
        }

    def keys_and_values(self, layer: Layer, tokens_BLD: Tensor, temb_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of one attention, each (B, L, C), with Phi."""
        if self.ln_context is not None:
            tokens_BLD = self.ln_context(tokens_BLD, temb_BD)
        return layer(tokens_BLD, temb_BD)


class Processor:
    """An attention processor that adds the stream to another processor's output.

    It is no nn.Module, because the weights belong to the adaptor and not to the prior.
    """

    def __init__(self, inner: Any, stream: VisualStream, layer: Layer) -> None:
        self.inner, self.stream, self.layer = inner, stream, layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        ip_hidden_states: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        out = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        if ip_hidden_states is None or self.stream.scale == 0:
            return out
        stream_BLC = self.stream.scale * self._attend(attn, hidden_states, *ip_hidden_states)
        return (out[0] + stream_BLC, *out[1:]) if isinstance(out, tuple) else out + stream_BLC  # InstantIR, Eq. 3

    def _attend(self, attn: Attention, h_BLC: Tensor, tokens_BLD: Tensor, temb_BD: Tensor) -> Tensor:
        """Attention of the image's queries to the stream, with the attention's output layer but not its bias."""
        key, value = self.stream.keys_and_values(self.layer, tokens_BLD, temb_BD)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(h_BLC), key, value))
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        out_BLC = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype)).transpose(1, 2).flatten(2)
        assert attn.to_out is not None
        to_out: Any = attn.to_out[0]
        return to_out(out_BLC) - to_out.bias


def text_attentions(backbone: Backbone) -> dict[str, Attention]:
    """The attentions to the text by name: a UNet's cross attentions, an MM-DiT's joint attentions."""
    ending = ".attn" if backbone.family == "mmdit" else ".attn2"
    return {name: module for name, module in backbone.denoiser.named_modules() if name.endswith(ending)}
