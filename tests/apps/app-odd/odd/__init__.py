"""An app that does odd things; its ServerApp checks what comes of them."""
