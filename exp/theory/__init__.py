"""The paper's theory as experiments, one small module a statement, one room a test bed."""
