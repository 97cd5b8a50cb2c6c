"""Distances between samples and data, and the feature network behind them."""

from mcmeqx.metrics._efficientnet import EfficientNetLite0 as EfficientNetLite0
from mcmeqx.metrics._frechet import Moments as Moments
from mcmeqx.metrics._frechet import frechet_distance as frechet_distance
from mcmeqx.metrics._network import AbstractFeatureNetwork as AbstractFeatureNetwork
from mcmeqx.metrics._network import features as features
from mcmeqx.metrics._sliced import sliced_wasserstein as sliced_wasserstein
