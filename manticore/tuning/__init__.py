"""Fine-tuning with adapters: what they reach, recipes that compare them, a search over shapes."""
