"""The explorer's frame: what Streamlit runs. Model and text stand in the sidebar, each page is a file in `screens/`."""

from pathlib import Path

import streamlit as st

from interp_explorer import address
from interp_explorer.subject import bring_along, sidebar

PAGES = {
    "Look": {
        "overview": ("Overview", ":material/dashboard:"),
        "channels": ("Channels", ":material/equalizer:"),
        "rank": ("Rank", ":material/grid_on:"),
        "sinks": ("Sinks", ":material/water_drop:"),
        "image": ("Image", ":material/image:"),
        "in_context": ("In-context learning", ":material/school:"),
    },
    "Change": {"intervene": ("Intervene", ":material/tune:")},
    "Keep": {"studies": ("Studies", ":material/science:"), "export": ("Export", ":material/download:")},
}

# an icon of its own: a page's symbol as the tab's icon would be fetched from the network
ICON = Path(__file__).with_name("icon.svg")

st.set_page_config(page_title="interp", page_icon=str(ICON), layout="wide")
page = st.navigation(
    {
        section: [
            st.Page(f"screens/{name}.py", title=title, icon=icon, url_path=name, default=name == "overview")
            for name, (title, icon) in pages.items()
        ]
        for section, pages in PAGES.items()
    }
)
bring_along(page.url_path)
sidebar()
address.tell()
page.run()
