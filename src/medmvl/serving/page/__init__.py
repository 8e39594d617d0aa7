"""The page: a web page on which one looks at images and volumes, asks a model about them, and sees what an answer depends on."""
