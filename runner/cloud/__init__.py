"""What the target ``cloud`` is made of. Imported inside the containers too: import nothing here."""
