"""What is computed: modules and pure functions. No files, no ranks and no config objects in here."""
