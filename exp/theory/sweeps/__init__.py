"""What a rule gains or loses when every rule has the best learning rate of its own grid."""
