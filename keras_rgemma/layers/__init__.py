"""The blocks of the model: thin shells that own weights around functions of arrays and state."""
