"""How a run happens: compose, check, launch, fit, checkpoint, track."""
