"""Curvature where training goes: what perturbed gradients see and what they lead to."""
