"""What other programs call the layers of SpEx+, whose names are many and whose network is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern in a name, and what takes its place."""

SCALES = ("short", "middle", "long")

_RENAMES: tuple[Rename, ...] = (
    (r"^encoder_1d_(short|middle|long)\.", lambda m: f"encoder.banks.{SCALES.index(m[1])}."),
    (r"^ln\.", "fusion.mixture.norm."),
    (r"^proj\.", "fusion.mixture.project."),
    (r"^aux_enc3\.0\.", "fusion.reference.norm."),
    (r"^aux_enc3\.1\.", "fusion.reference.project."),
    (r"^aux_enc3\.([234])\.", lambda m: f"speaker.blocks.{int(m[1]) - 2}."),
    (r"^aux_enc3\.5\.", "speaker.project."),
    (r"^pred_linear\.", "classifier."),
    (r"^conv_block_(\d{1,4})\.", lambda m: f"extractor.stacks.{int(m[1]) - 1}.condition."),
    (
        r"^conv_block_(\d{1,4})_other\.(\d{1,4})\.",
        lambda m: f"extractor.stacks.{int(m[1]) - 1}.blocks.{m[2]}.",
    ),
    (r"^mask([123])\.", lambda m: f"masks.heads.{int(m[1]) - 1}."),
    (r"^decoder_1d_([123])\.", lambda m: f"decoder.banks.{int(m[1]) - 1}."),
    (r"\.conv1x1\.", ".widen."),
    (r"\.dconv\.", ".depthwise."),
    (r"\.sconv\.", ".narrow."),
    (r"\.conv_downsample\.", ".shortcut."),
    (r"\.conv([12])\.", r".conv_\1."),
    (r"\.prelu([12])\.", r".activation_\1."),
    (r"\.(lnorm[12])\.gamma$", r".\1.weight"),
    (r"\.(lnorm[12])\.beta$", r".\1.bias"),
    (r"\.(?:lnorm|batch_norm)([12])\.", r".norm_\1."),
)
"""The names of SpEx+'s authors, made ours; those of others are made theirs first."""


@dataclass(frozen=True)
class Layout:
    """What one program calls SpEx+'s layers, and its sizes in the JSON beside them."""

    mark: str
    """What some of its names begin with, and no other program's."""
    renames: tuple[Rename, ...]
    letters: dict[str, str]
    fixed: dict[str, object] = field(default_factory=dict)
    """Values without which it is another network than ours."""
    causal_with: str = ""
    """The norm that only its causal network has, where masks are ReLU's and so all is shown."""

    def ours(self, name: str) -> str:
        """Our name of a layer's tensor; one that fits nothing of ours if there is none."""
        for pattern, place in (*self.renames, *_RENAMES):
            name = re.sub(pattern, place, name)
        return name


_LETTERS = {
    **{"L": "short", "N": "filters", "X": "blocks", "R": "stacks", "B": "channels", "H": "hidden"},
    **{"P": "kernel", "norm": "norm"},
}
_FOUR_STACKS = {letter: fact for letter, fact in _LETTERS.items() if letter != "R"}
"""SpEx+'s authors have an R that no line of their network reads: there are four stacks."""

LAYOUTS = {
    "gemengtju/SpEx_Plus": Layout("aux_enc3.", (), _FOUR_STACKS, {"num_spks": 1}),
    "xuchenglin28/speaker_extraction_SpEx": Layout(
        "spk_encoder.",
        (
            (r"^spk_encoder\.", "aux_enc3."),
            (r"\.norm([12])\.", r".lnorm\1."),
            (
                r"^decoder_1d_(short|middle|long)\.",
                lambda m: f"decoder_1d_{SCALES.index(m[1]) + 1}.",
            ),
        ),
        {
            **{"L1": "short", "L2": "middle", "L3": "long", "N": "filters", "B": "blocks"},
            **{"O": "channels", "P": "hidden", "Q": "kernel"},
            **{"spk_embed_dim": "embedding", "num_spks": "speakers"},
        },
        causal_with="cLN",
    ),
    "wenet-e2e/wesep": Layout(
        "spk_model.aux_enc3.",
        (
            (r"^(?:encoder|decoder|spk_model)\.", ""),
            (
                r"^separation\.separation\.(\d{0,3}[02468])\.",
                lambda m: f"conv_block_{int(m[1]) // 2 + 1}.",
            ),
            (
                r"^separation\.separation\.(\d{0,3}[13579])\.separation\.",
                lambda m: f"conv_block_{int(m[1]) // 2 + 1}_other.",
            ),
            (r"\.PReLU_([12])\.", r".prelu\1."),
            (r"\.norm_([12])\.", r".lnorm\1."),
            (r"\.dwconv\.", ".dconv."),
            (r"\.Output\.", ".sconv."),
        ),
        {**_LETTERS, "spk_emb_dim": "embedding", "spksInTrain": "speakers"},
    ),
}

FIXED: dict[str, object] = {"causal": False, "non_linear": "relu", "activate": "relu"}
"""What weights cannot show, and what our network is."""
