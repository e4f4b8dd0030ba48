"""How the experiment on adversarial noise is wired."""
