"""What a part of a report is made of: entries, sections, figures, and text from outside made inert."""
