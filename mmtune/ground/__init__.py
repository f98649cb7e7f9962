"""Floor 0: what everything else stands on, and nothing here knows backbones, recipes or loops."""
