import {
  domainLabel,
  type DomainReport,
  type DomainRow,
  domainTable,
  fig3,
  fingerprint,
  resultOf,
  shareTable,
} from "@mix-of-show/mix-of-show/experiments";
import { readPicture } from "@mix-of-show/mix-of-show";
import {
  plot,
  showFigure,
  showPicture,
  showTable,
} from "@mix-of-show/mix-of-show/report";

// True runs the experiment's quick plan again, which takes minutes.
const recompute = false;
const folder = "../results/full";
const { data, source } = await resultOf(fig3, { folder, recompute });
const report: DomainReport = { ...data, conclusive: !recompute };
console.log(source);
showTable(domainTable(report));
function curves(domain: DomainRow["domain"]) {
  const own = report.rows.filter((row) =>
    row.domain === domain && row.fusion === "none"
  );
  const base = own.find(({ method }) => method === "class")!;
  const methods = ["lora", "ed-lora"] as const;
  const of = (method: DomainRow["method"]) =>
    own.filter((row) => row.method === method);
  const x = of("lora").map(({ alpha }) => alpha);
  const level = (method: DomainRow["method"], name: string) => ({
    ...{ name, as: "lines" as const, dotted: true, x },
    y: x.map(() => of(method)[0]?.image ?? null),
  });
  return plot({
    title: domain === "in" ? "In-domain concepts" : "Out-domain concepts",
    xTitle: "strength α of the adapter",
    yTitle: "image alignment",
    series: [
      ...methods.map((method) => ({
        name: method,
        as: "lines+markers" as const,
        x: of(method).map(({ alpha }) => alpha),
        y: of(method).map(({ image }) => image),
      })),
      level("textual-inversion", "Textual Inversion"),
      level("p+", "P+"),
      { ...level("class", "class word"), y: x.map(() => base.image) },
    ],
  });
}
showFigure(curves("in"));
showFigure(curves("out"));
showTable(shareTable(report));
const fused = report.rows.filter(({ fusion }) => fusion !== "none");
showFigure(plot({
  title: "Image alignment above the class word after fusion",
  yTitle: "gain",
  legend: false,
  series: [{
    name: "gain",
    x: fused.map((row) => `${row.domain}: ${domainLabel(row)}`),
    y: fused.map(({ gain }) => gain),
  }],
}));
console.log(await fingerprint(`${folder}/domain.png`));
showPicture(await readPicture(`${folder}/domain.png`));
export {};
