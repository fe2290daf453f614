"""JSMA (Papernot et al. 2016): saturates the most salient pair of values at a time until the class changes."""
