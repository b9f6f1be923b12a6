"""An article's XML to its text, figures, formulas, licences and media names; pure functions."""
