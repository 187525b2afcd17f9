"""From flags, TOML files and presets to a Config."""
