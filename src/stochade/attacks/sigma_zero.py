"""Sigma-zero (Cinà et al., ICLR 2025): the fewest changed values, by gradient descent on a smooth count."""
