"""Reports of a run for people and programs: one `Summary`, and a renderer for each format."""
