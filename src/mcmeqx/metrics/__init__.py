"""Distances between samples and data, and the feature network behind them."""

from mcmeqx.metrics._efficientnet import EfficientNetLite0 as EfficientNetLite0
from mcmeqx.metrics._frechet import Gaussian as Gaussian
from mcmeqx.metrics._frechet import Moments as Moments
from mcmeqx.metrics._frechet import frechet_distance as frechet_distance
from mcmeqx.metrics._imagenet_crop import imagenet_crop as imagenet_crop
from mcmeqx.metrics._inception import Inception as Inception
from mcmeqx.metrics._inception_score import InceptionScore as InceptionScore
from mcmeqx.metrics._inception_score import inception_score as inception_score
from mcmeqx.metrics._kernel import KernelDistance as KernelDistance
from mcmeqx.metrics._kernel import kernel_distance as kernel_distance
from mcmeqx.metrics._neighbours import DensityCoverage as DensityCoverage
from mcmeqx.metrics._neighbours import PrecisionRecall as PrecisionRecall
from mcmeqx.metrics._neighbours import density_coverage as density_coverage
from mcmeqx.metrics._neighbours import precision_recall as precision_recall
from mcmeqx.metrics._network import AbstractFeatureNetwork as AbstractFeatureNetwork
from mcmeqx.metrics._network import features as features
from mcmeqx.metrics._reference import Reference as Reference
from mcmeqx.metrics._reference import read_reference as read_reference
from mcmeqx.metrics._reference import reference as reference
from mcmeqx.metrics._reference import save_reference as save_reference
from mcmeqx.metrics._sliced import sliced_wasserstein as sliced_wasserstein
