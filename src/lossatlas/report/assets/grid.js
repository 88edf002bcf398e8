// The page of a grid: draw everything once the numbers are unpacked.

async function start() {
  await loadArrays();
  reset();
  relabel();
  document.body.append(card);
  const section = (name) => document.getElementById(name);
  const chooser = sliceChooser();
  if (chooser) section("phases").append(chooser);
  buildPhases(section("phases"));
  buildPanels(section("metrics"));
  buildSlices(section("slices"));
}

begin(start);
