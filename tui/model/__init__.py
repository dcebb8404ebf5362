"""What the app knows, without a screen: records, filter, statistics, evidence. Imports no Textual."""
