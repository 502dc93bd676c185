"""The length of a step as a trust region: TR-Muon beside what it competes with."""
