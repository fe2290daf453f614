"""What spiking networks and encoders do beside classifying: spikes, operations, energy, latency, kinship of codes."""

from stochade.metrics.codes import code_similarity, linear_covariance, sampled_covariance, tradeoff
from stochade.metrics.spikes import Operations, accuracy_by_latency, energy, operations, spike_rates

__all__ = [
    "Operations",
    "accuracy_by_latency",
    "code_similarity",
    "energy",
    "linear_covariance",
    "operations",
    "sampled_covariance",
    "spike_rates",
    "tradeoff",
]
