"""Everything that touches torch and transformers: devices, models, packed forward, pooling."""
