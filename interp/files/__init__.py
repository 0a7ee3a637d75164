"""Files: the one door through which the project writes, and behind which it decodes what nobody vouches for."""
