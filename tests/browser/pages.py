"""What the tests of widgets with live models share: hostile text, the page's weights, controls."""

import torch

from course_lib.widgets.weights import dequantised

HOSTILE = "</script><script>document.title='x'</script> <|im_end|> <b>🦊</b> שלום &amp; 'll"


def in_page(model):
    """The model with the weights that the page runs."""
    with torch.no_grad():
        for parameter in model.parameters():
            small = dequantised(parameter) if parameter.dim() > 1 else parameter.half().float()
            parameter.copy_(small)
    return model


def slide(slider, value):
    """Move a slider as a reader does."""
    slider.evaluate(
        "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def texts(locator):
    return locator.all_text_contents()
