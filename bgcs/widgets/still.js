// A view lives with its kernel. JupyterLab, in a notebook of one's own that is opened another day, says in its place
// that there is no model, whatever picture lies beside it. This is run by the output below a view's: it shows the
// picture where the view is missing, and nothing as long as the view lives.

const PATIENCE = 5000; // milliseconds after which a view that hasn't come is missed

function showStill(picture) {
  const here = document.currentScript.closest(".jp-OutputArea-child, .output_area");
  const view = here?.previousElementSibling;
  if (!view) return; // another kind of page, which chooses the picture by itself
  const said = "As it was; run the cell to bring the view back.";
  const still = Object.assign(new Image(), { className: "bgcs-still", src: picture, alt: said, title: said });
  still.style.maxWidth = "100%";
  let late = false;
  const look = () => {
    const there = view.querySelector(".bgcs-view, img");
    const missed = picture && !there && (late || view.textContent.includes("Error displaying widget"));
    here.style.display = missed ? "" : "none";
    view.style.display = missed ? "none" : "";
    if (missed) here.lastElementChild.append(still);
  };
  const isLate = () => {
    late = true;
    look();
  };
  new MutationObserver(look).observe(view, { childList: true, subtree: true });
  setTimeout(isLate, PATIENCE);
  look();
}
