"""The languages of what people read, in the terminal and on the pages of errors."""
