"""The loss of CLIP, as open_clip calls it."""

import torch
from torch import Tensor, nn

from merc_kernels._shared import backends, checks, torch_private
from merc_kernels.focal_contrastive import focal_contrastive_loss

PLAIN = 1 << 24  # elements up to which a matrix is held: three products, of which the fused form computes eight


class ClipLoss(nn.Module):
    """Images against texts and texts against images; open_clip's ``ClipLoss`` of one process.

    ``logit_scale``, a number or a tensor, gets its gradient. The features are taken as they are: open_clip's models
    normalise theirs. Up to 4096 pairs a call that names no backend holds an N x N matrix, the quickest on a CPU (no GPU
    has measured it); above, and on every backend but ``"reference"``, memory is linear in the rows.

    Args:
        backend: a key of `merc_kernels.backends`, or None.
        **single: the original's options for several processes, ``world_size`` and ``rank`` among them; ignored
            for one process.

    Raises:
        ValueError: a ``world_size`` above 1.
    """

    def __init__(self, *, backend: str | None = None, **single: object) -> None:
        super().__init__()
        known = ("local_loss", "gather_with_grad", "cache_labels", "rank", "world_size", "use_horovod")
        for name, value in single.items():
            checks.choice("option", name, known)
            if name == "world_size" and value != 1:
                checks.fail(name, "1: the rows of this process are all that there are", value)
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: object = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of ``(N, D)`` features, row i of either being one pair.

        Raises:
            ValueError: a ``logit_bias``, a ``logit_scale`` that is no positive number, or features that do not match.
        """
        if logit_bias is not None:  # the softmax takes out a constant
            checks.fail("logit_bias", "None, as the loss does not depend on it", logit_bias)
        for name, features in (("image_features", image_features), ("text_features", text_features)):
            checks.tensor(name, features, checks.FLOAT, None, ("N", "D"))
        checks.tensor("text_features", text_features, checks.FLOAT, image_features.device, tuple(image_features.shape))
        dtype = torch.promote_types(image_features.dtype, text_features.dtype)
        images, texts = image_features.to(dtype), text_features.to(dtype)
        logit_scale = _scale(logit_scale)
        if torch_private.untraced(_is_plain, self.backend, images):
            loss = _plain(images, texts, logit_scale)
        else:
            loss = self._fused(images, texts, logit_scale)
        return {"contrastive_loss": loss} if output_dict else loss

    def _fused(self, images: Tensor, texts: Tensor, logit_scale: float | Tensor) -> Tensor:
        pairs = torch.arange(len(images), device=images.device)
        return focal_contrastive_loss(
            torch.stack((images, texts)),
            pairs,
            temperature=1 / logit_scale,
            gamma=0.0,
            ref_embeddings=torch.stack((texts, images)),
            ref_labels=pairs,
            ref_only=True,
            normalize=False,
            backend=self.backend,
        )


def _scale(logit_scale: float | Tensor) -> float | Tensor:
    """A positive number, or a tensor without a dimension that holds one."""
    if not isinstance(logit_scale, Tensor):
        checks.number("logit_scale", logit_scale, above=0)
        return logit_scale
    checks.tensor("logit_scale", logit_scale, checks.FLOAT, None, (), (1,))
    if checks.readable(logit_scale):
        checks.elements("logit_scale", "a number > 0", logit_scale, ~(logit_scale <= 0))
    return logit_scale.reshape(())


def _is_plain(backend: str | None, images: Tensor) -> bool:
    """Whether a matrix is held: of few pairs, unless another backend than the reference is asked for."""
    offered = ("reference", "cpu", "cuda", "triton", "torch")  # the first, where nothing is asked for
    return len(images) ** 2 <= PLAIN and backends.choose(backend, "ClipLoss", images, None, offered) == "reference"


def _plain(images: Tensor, texts: Tensor, logit_scale: float | Tensor) -> Tensor:
    """One matrix for both directions; its diagonal are the pairs."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        logits = images.to(dtype) * logit_scale @ texts.to(dtype).mT  # [N, N]
        both = (logits.logsumexp(0) + logits.logsumexp(1)) / 2
        return (both - logits.diagonal()).sum() / max(1, len(images))
