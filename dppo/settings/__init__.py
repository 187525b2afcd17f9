"""Makes a Config of flags, TOML files and presets."""
