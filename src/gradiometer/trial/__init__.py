"""Trials: theory proposes treatments (prescribe), experiment disposes of them (race), and a verdict says what was shown."""
