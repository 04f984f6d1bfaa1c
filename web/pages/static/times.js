// Times in the reader's zone.

// How times are shown: with their zone.
const LOCAL = { dateStyle: "medium", timeStyle: "long" };

export function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString(undefined, LOCAL);
  }
}
