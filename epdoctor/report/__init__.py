"""Report formats, all written from `epdoctor.model.Report`."""
