"""The paper's theory as experiments, one small module each."""
