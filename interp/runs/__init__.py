"""What a person starts: probing a text, generating and its account, two continuations side by side, patching."""
