"""Feature networks by the name that the command line gives them."""

from collections.abc import Callable
from pathlib import Path

from mcmeqx.metrics import AbstractFeatureNetwork, EfficientNetLite0, Inception

Loader = Callable[[Path | None, str | None], AbstractFeatureNetwork]


def _inception(like) -> Loader:
    def load(weights: Path | None, sha256: str | None) -> AbstractFeatureNetwork:
        if weights is None:
            raise ValueError(
                "FID's Inception needs --weights, the file "
                "pt_inception-2015-12-05-6726825d.pth"
            )
        named = {} if sha256 is None else {"sha256": sha256}
        return Inception.load(weights, like, **named)

    return load


def _efficientnet(blocks: int | None) -> Loader:
    def load(weights: Path | None, sha256: str | None) -> AbstractFeatureNetwork:
        if weights is not None or sha256 is not None:
            raise ValueError("EfficientNet-Lite0 has its weights: leave --weights out")
        return EfficientNetLite0.load(blocks)

    return load


NETWORKS: dict[str, Loader] = {
    "efficientnet": _efficientnet(None),
    "efficientnet-block5": _efficientnet(5),
    "inception": _inception("tensorflow"),
    "inception-pytorch-fid": _inception("pytorch-fid"),
}
